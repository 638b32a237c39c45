"""A built repository whose engines are a few ONNX nodes: the edit inverts every pixel exactly, at 16x16.

Each stage carries state like the real one and marks the latent with it; the decoder keeps its own account of what the
marks must be and answers black frames if they disagree. So a chunk out of order, a state of another stream or a wrong
step count is visible in the pixels. The word "keep" in the prompt turns the inversion off, "slow" makes the text
encoder slow.
"""

import json
from pathlib import Path

import onnx
from onnx import parser

from sana_build.repository import package
from sana_runtime.engine import describe, load_engine
from sana_runtime.geometry import StreamGeometry
from sana_runtime.manifest import EngineEntry, Manifest

SIZE = 16
PIXELS = SIZE * SIZE * 3
PACKED = 8 * PIXELS
CHANNELS = PACKED + 2
"""Eight frames fit one latent frame; then the mark, and the stream's first pixel of the chunk."""

TOKENS, WIDTH = 6, 2
CHI = "you edit video "
IDS = 1 + len(CHI.split()) + TOKENS - 2
WORDS = ("<pad>", "<eos>", "<bos>", "<unk>", "you", "edit", "video", "invert", "keep", "slow")
SLOW_ROUNDS = 400
HEADER = '<ir_version: 10, opset_import: ["": 20]>'

VAE_ENCODER_FIRST = f"""{HEADER}
g (uint8[1,33,{SIZE},{SIZE},3] frames) => (float[1,{CHANNELS},5,1,1] source, float[1] marks__out)
<int64[2] flat = {{1, {33 * PIXELS}}}, int64[2] sizes = {{{PIXELS}, {32 * PIXELS}}}, int64[2] one = {{1, {PIXELS}}},
 int64[2] many = {{4, {PACKED}}}, int64[4] pads = {{0, 0, 0, {PACKED - PIXELS}}}, int64[2] marks_shape = {{5, 1}},
 int64[5] latent = {{1, 5, {CHANNELS}, 1, 1}}, int64[1] start = {{0}}, int64[1] stop = {{1}}, int64[1] axis = {{1}},
 float[1] zero = {{0}}, int64[1] shape_1 = {{1}}> {{
    pixels = Cast <to: int = 1> (frames)
    row = Reshape (pixels, flat)
    head, tail = Split <axis: int = 1> (row, sizes)
    head_padded = Pad (head, pads)
    tail_rows = Reshape (tail, many)
    rows = Concat <axis: int = 0> (head_padded, tail_rows)
    pixel_0 = Slice (row, start, stop, axis)
    first = Reshape (pixel_0, shape_1)
    mark_column = Expand (zero, marks_shape)
    first_column = Expand (first, marks_shape)
    packed = Concat <axis: int = 1> (rows, mark_column, first_column)
    ordered = Reshape (packed, latent)
    source = Transpose <perm: ints = [0, 2, 1, 3, 4]> (ordered)
    marks__out = Add (zero, first)
}}"""

VAE_ENCODER_STEADY = f"""{HEADER}
g (uint8[1,24,{SIZE},{SIZE},3] frames, float[1] marks__in)
=> (float[1,{CHANNELS},3,1,1] source, float[1] marks__out)
<int64[2] many = {{3, {PACKED}}}, int64[2] marks_shape = {{3, 1}}, int64[5] latent = {{1, 3, {CHANNELS}, 1, 1}},
 int64[2] start = {{0, 0}}, int64[2] stop = {{1, 1}}, int64[1] shape_1 = {{1}}> {{
    pixels = Cast <to: int = 1> (frames)
    rows = Reshape (pixels, many)
    pixel_0 = Slice (rows, start, stop)
    first = Reshape (pixel_0, shape_1)
    mark_column = Expand (marks__in, marks_shape)
    first_column = Expand (first, marks_shape)
    packed = Concat <axis: int = 1> (rows, mark_column, first_column)
    ordered = Reshape (packed, latent)
    source = Transpose <perm: ints = [0, 2, 1, 3, 4]> (ordered)
    marks__out = Add (marks__in, first)
}}"""

TEXT_ENCODER = f"""{HEADER}
g (int64[1,{IDS}] input_ids, int64[1,{IDS}] attention_mask)
=> (float[1,{TOKENS},{WIDTH}] text, float[1,{TOKENS}] text_mask)
<int64[1] start = {{{IDS - TOKENS}}}, int64[1] stop = {{{IDS}}}, int64[1] axis = {{1}},
 int64 keep = {{{WORDS.index("keep")}}}, int64 slow = {{{WORDS.index("slow")}}}, int64[1] last = {{2}},
 int64[3] shape = {{1, {TOKENS}, {WIDTH}}}, int64[1] rounds = {{{SLOW_ROUNDS}}},
 float[1] none = {{0}}, int64[2] square = {{256, 256}}, bool go = {{1}}> {{
    ids = Slice (input_ids, start, stop, axis)
    mask = Slice (attention_mask, start, stop, axis)
    text_mask = Cast <to: int = 1> (mask)
    is_keep = Equal (ids, keep)
    kept = Cast <to: int = 1> (is_keep)
    column = Unsqueeze (kept, last)
    wide = Expand (column, shape)
    is_slow = Equal (ids, slow)
    slows = Cast <to: int = 7> (is_slow)
    any_slow = ReduceMax <keepdims: int = 0> (slows)
    trips_1 = Mul (any_slow, rounds)
    scalar = Squeeze (trips_1)
    matrix = Expand (none, square)
    worked = Loop (scalar, go, matrix) <body = work (int64 i, bool c, float[256,256] m) => (bool d, float[256,256] n) {{
        d = Identity (c)
        n = MatMul (m, m)
    }}>
    waste = ReduceMax <keepdims: int = 0> (worked)
    text = Add (wide, waste)
}}"""

DENOISER_PROMPT = f"""{HEADER}
g (float[1,{TOKENS},{WIDTH}] text, float[1,{TOKENS}] text_mask)
=> (float[1,1,{TOKENS},{WIDTH}] block00__text_k, float[1,1,{TOKENS},{WIDTH}] block00__text_v,
    float[1,1,1,{TOKENS}] text_bias)
<int64[1] axis_1 = {{1}}, int64[2] axes = {{1, 2}}, float one = {{1}}, float far = {{1000000000}}> {{
    block00__text_k = Unsqueeze (text, axis_1)
    block00__text_v = Unsqueeze (text, axis_1)
    inside = Sub (text_mask, one)
    bias = Mul (inside, far)
    text_bias = Unsqueeze (bias, axes)
}}"""


def _denoiser(latents: int, inputs: str, outputs: str, mark: str, body: str) -> str:
    """Velocity towards the edited source, whose mark is raised by `mark`; `body` computes marks and state."""
    return f"""{HEADER}
g (float[1,{CHANNELS},{latents},1,1] latent, float[1,{CHANNELS},{latents},1,1] source, float[1] timestep,
   float[1,1,{TOKENS},{WIDTH}] block00__text_k, float[1,1,{TOKENS},{WIDTH}] block00__text_v,
   float[1,1,1,{TOKENS}] text_bias{inputs})
=> (float[1,{CHANNELS},{latents},1,1] velocity, float[1,1,1,1] block00__state_kv__out,
    float[1,1,1] block00__tconv__out{outputs})
<int64[3] sizes = {{{PACKED}, 1, 1}}, float full = {{255}}, float thousand = {{1000}}, float least = {{0.001}},
 float one = {{1}}, float two = {{2}}, float three = {{3}}, float five = {{5}}, float zero = {{0}},
 int64[1] start = {{0}}, int64[1] stop = {{1}}, int64[1] axis = {{2}}, int64[4] shape_kv = {{1, 1, 1, 1}},
 int64[3] shape_tconv = {{1, 1, 1}}, int64[4] sink_shape = {{1, 1, 5, 1}}, int64[4] recent_shape = {{1, 1, 3, 1}},
 float[1] one_1 = {{1}}> {{
    pixels, marks, firsts = Split <axis: int = 1> (source, sizes)
    keep = ReduceMax <keepdims: int = 0> (block00__text_k)
    inverted = Sub (full, pixels)
    drop = Sub (one, keep)
    kept_part = Mul (pixels, keep)
    inverted_part = Mul (inverted, drop)
    edit = Add (kept_part, inverted_part)
    text_used = ReduceSum <keepdims: int = 0> (block00__text_v)
    text_unused = Mul (text_used, zero)
    bias_used = ReduceMax <keepdims: int = 0> (text_bias)
    first_row = Slice (firsts, start, stop, axis)
    first = Reshape (first_row, shape_kv)
    doubled = Mul (first, two)
    raise = Add (doubled, one)
{body}
    mark_0 = Add (marks, {mark})
    mark_1 = Add (mark_0, text_unused)
    mark_2 = Add (mark_1, bias_used)
    target = Concat <axis: int = 1> (edit, mark_2, firsts)
    sigma_0 = Div (timestep, thousand)
    sigma = Max (sigma_0, least)
    gap = Sub (latent, target)
    velocity = Div (gap, sigma)
    block00__tconv__out = Reshape (first, shape_tconv)
}}"""


DENOISER_FIRST = _denoiser(
    5,
    "",
    ", float[1,1,5,1] block01__sink_k__out, float[1,1,5,1] block01__sink_v__out",
    "zero",
    """
    block00__state_kv__out = Identity (raise)
    block01__sink_k__out = Expand (one_1, sink_shape)
    block01__sink_v__out = Expand (one_1, sink_shape)
""",
)

DENOISER_STEADY = _denoiser(
    3,
    """, int64[1] frame_start, float[1,1] recent_valid, float[1,1,1,1] block00__state_kv__in,
    float[1,1,1] block00__tconv__in, float[1,1,5,1] block01__sink_k__in, float[1,1,5,1] block01__sink_v__in,
    float[1,1,3,1] block01__recent_k__in, float[1,1,3,1] block01__recent_v__in""",
    ", float[1,1,3,1] block01__recent_k__out, float[1,1,3,1] block01__recent_v__out",
    "mark_shift",
    """
    block00__state_kv__out = Add (block00__state_kv__in, raise)
    here = Cast <to: int = 1> (frame_start)
    block01__recent_k__out = Expand (here, recent_shape)
    block01__recent_v__out = Expand (one_1, recent_shape)
    before = Sub (here, three)
    expected_k = Mul (recent_valid, before)
    seen_k = ReduceMean <keepdims: int = 0> (block01__recent_k__in)
    wrong_k = Sub (seen_k, expected_k)
    seen_v = ReduceMean <keepdims: int = 0> (block01__recent_v__in)
    wrong_v = Sub (seen_v, recent_valid)
    sink_k = ReduceMean <keepdims: int = 0> (block01__sink_k__in)
    sink_v = ReduceMean <keepdims: int = 0> (block01__sink_v__in)
    sinks = Add (sink_k, sink_v)
    wrong_sinks = Sub (sinks, two)
    later = Greater (here, five)
    is_later = Cast <to: int = 1> (later)
    wrong_valid = Sub (recent_valid, is_later)
    tconv_used = ReduceMax <keepdims: int = 0> (block00__tconv__in)
    tconv_unused = Mul (tconv_used, zero)
    wrong_0 = Abs (wrong_k)
    wrong_1 = Abs (wrong_v)
    wrong_2 = Abs (wrong_sinks)
    wrong_3 = Abs (wrong_valid)
    wrong_4 = Sum (wrong_0, wrong_1, wrong_2, wrong_3, tconv_unused)
    wrong = ReduceSum <keepdims: int = 0> (wrong_4)
    state = Squeeze (block00__state_kv__in)
    mark_shift = Add (state, wrong)
""",
)


def _decoder(latents: int, frames: int, inputs: str, account: str, unpack: str) -> str:
    """Frames from the packed channels; black if the latent's mark is not what the decoder's account says."""
    return f"""{HEADER}
g (float[1,{CHANNELS},{latents},1,1] latent{inputs})
=> (uint8[1,{frames},{SIZE},{SIZE},3] edited, float[1] account__out)
<int64[3] sizes = {{{PACKED}, 1, 1}}, int64[1] start = {{0}}, int64[1] stop = {{1}}, int64[1] axis = {{2}},
 int64[1] shape_1 = {{1}}, int64[2] rows_shape = {{{latents}, {PACKED}}}, int64[2] begin = {{0, 0}},
 int64[2] first_end = {{1, {PIXELS}}}, int64[2] rest_begin = {{1, 0}}, int64[2] rest_end = {{5, {PACKED}}},
 int64[2] as_frames = {{-1, {PIXELS}}}, int64[5] shape = {{1, {frames}, {SIZE}, {SIZE}, 3}}, float half = {{0.5}},
 float three = {{3}}, float[1] one = {{1}}, float low = {{0}}, float high = {{255}}, float[1] none = {{0}}> {{
    packed, marks, firsts = Split <axis: int = 1> (latent, sizes)
    ordered = Transpose <perm: ints = [0, 2, 1, 3, 4]> (packed)
    rows = Reshape (ordered, rows_shape)
{unpack}
    all = Reshape (frame_rows, shape)
    difference = Sub (marks, {account})
    distance = Abs (difference)
    worst = ReduceMax <keepdims: int = 0> (distance)
    right = Less (worst, half)
    is_right = Cast <to: int = 1> (right)
    shown = Mul (all, is_right)
    rounded = Round (shown)
    clipped = Clip (rounded, low, high)
    edited = Cast <to: int = 2> (clipped)
    first_row = Slice (firsts, start, stop, axis)
    first_raw = Reshape (first_row, shape_1)
    first = Round (first_raw)
    tripled = Mul (first, three)
    raise = Add (tripled, one)
    account__out = Add ({account}, raise)
}}"""


VAE_DECODER_FIRST = _decoder(
    5,
    33,
    "",
    "none",
    """
    head = Slice (rows, begin, first_end)
    rest = Slice (rows, rest_begin, rest_end)
    rest_rows = Reshape (rest, as_frames)
    frame_rows = Concat <axis: int = 0> (head, rest_rows)
""",
)
VAE_DECODER_STEADY = _decoder(
    3, 24, ", float[1] account__in", "account__in", "    frame_rows = Reshape (rows, as_frames)"
)

GRAPHS = {
    ("text_encoder", "prompt"): TEXT_ENCODER,
    ("vae_encoder", "first"): VAE_ENCODER_FIRST,
    ("vae_encoder", "steady"): VAE_ENCODER_STEADY,
    ("denoiser", "prompt"): DENOISER_PROMPT,
    ("denoiser", "first"): DENOISER_FIRST,
    ("denoiser", "steady"): DENOISER_STEADY,
    ("vae_decoder", "first"): VAE_DECODER_FIRST,
    ("vae_decoder", "steady"): VAE_DECODER_STEADY,
}


def write_fake_repository(path: Path, streams: int = 2, chunks: int = 8, idle_seconds: float = 30.0) -> Manifest:
    """Package the fake pipeline at `path` for `streams` streams of at most `chunks` chunks each."""
    engines: dict[str, dict[str, list[EngineEntry]]] = {}
    for (stage, variant), graph in GRAPHS.items():
        file = path / stage / "1" / f"{variant}.onnx"
        file.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(dotted(parser.parse_model(graph)), file)
        engine = load_engine("onnxruntime", file)
        tensors = describe(engine.inputs), describe(engine.outputs)
        relative = str(file.relative_to(path))
        engines.setdefault(stage, {})[variant] = [EngineEntry(relative, "onnxruntime", *tensors, error={})]
    (path / "text_encoder" / "1" / "tokenizer.json").write_text(json.dumps(tokenizer()))
    return package(path, fake_manifest(engines, streams, chunks, idle_seconds))


def fake_manifest(
    engines: dict[str, dict[str, list[EngineEntry]]], streams: int, chunks: int, idle_seconds: float
) -> Manifest:
    return Manifest(
        model="fake",
        gpu="cpu",
        policy="fp32",
        checkpoint="none",
        weights="none",
        geometry=StreamGeometry(SIZE, SIZE, CHANNELS, spatial_ratio=SIZE, max_latents=5 + 3 * (chunks - 1)),
        steps=4,
        streams=streams,
        idle_seconds=idle_seconds,
        engines=engines,
        versions={},
        config={"text": {"tokens": TOKENS, "width": WIDTH, "chi": CHI}},
    )


def dotted(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with `__` in its tensor names replaced by the dot that ONNX's text syntax has no room for."""
    for node in model.graph.node:
        node.input[:] = [name.replace("__", ".") for name in node.input]
        node.output[:] = [name.replace("__", ".") for name in node.output]
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.name = tensor.name.replace("__", ".")
    return model


def tokenizer() -> dict:
    """A word tokenizer with a leading <bos>, as the file `tokenizer.json`."""
    bos = WORDS.index("<bos>")
    special = [
        {
            "id": WORDS.index(word),
            "content": word,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for word in WORDS
        if word.startswith("<")
    ]
    pieces = [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": pieces,
            "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [bos], "tokens": ["<bos>"]}},
        },
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)}, "unk_token": "<unk>"},
    }
