import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sana_export.caches import Cache, GDNCache, KVCache, Prompt
from sana_export.dit import DiT, sinusoid
from sana_export.random_weights import fill_dit
from sana_export.rope import rope_rows
from sana_export.sampler import DiTStream
from sana_runtime.schedule import streaming_schedule
from small_dit import CONFIG, HEIGHT, WIDTH, assert_near, latents, make_prompt, small_dit, text_and_mask


def rows(frames: range) -> tuple[Tensor, Tensor]:
    return rope_rows(CONFIG.head_dim, frames, HEIGHT, WIDTH)


def two_chunks(dit: DiT, seed: int, batch: int = 1) -> tuple[Tensor, list[Cache]]:
    """Velocity and caches of a second chunk that follows a first one of five frames."""
    prompt = dit.prompt(*text_and_mask(seed, batch))
    times = torch.linspace(900, 100, batch)
    _, past = dit(*latents(5, seed, batch), times, prompt, rows(range(5)))
    return dit(*latents(3, seed + 1, batch), times, prompt, rows(range(5, 8)), past)


def row(prompt: Prompt, index: int) -> Prompt:
    one = slice(index, index + 1)
    return Prompt(tuple(k[one] for k in prompt.k), tuple(v[one] for v in prompt.v), prompt.bias[one])


def test_caches_have_the_layouts_of_the_engines() -> None:
    tokens, d = HEIGHT * WIDTH, CONFIG.head_dim
    velocity, caches = two_chunks(small_dit(), 0)
    assert velocity.shape == (1, CONFIG.latent_channels, 3, HEIGHT, WIDTH)
    assert [type(cache) for cache in caches] == [GDNCache, GDNCache, GDNCache, KVCache]
    assert caches[0].state_kv.shape == (1, 2, d, d)
    assert caches[0].state_z.shape == (1, 2, d)
    assert caches[3].k.shape == caches[3].v.shape == (1, 2, 3 * tokens, d)
    assert caches[0].tconv.shape == caches[3].tconv.shape == (1, tokens, CONFIG.hidden)


def test_a_batch_of_two_is_two_batches_of_one() -> None:
    dit = small_dit()
    prompt = dit.prompt(*text_and_mask(3, batch=2))
    times = torch.tensor([743.0, 961.0])
    first, second = latents(5, 1, batch=2), latents(3, 2, batch=2)
    _, past = dit(*first, times, prompt, rows(range(5)))
    together, _ = dit(*second, times, prompt, rows(range(5, 8)), past)
    for index in range(2):
        one = slice(index, index + 1)
        alone = row(prompt, index)
        _, past = dit(*(x[one] for x in first), times[one], alone, rows(range(5)))
        velocity, _ = dit(*(x[one] for x in second), times[one], alone, rows(range(5, 8)), past)
        assert_near(together[one], velocity)


def test_every_part_of_the_past_matters() -> None:
    dit = small_dit()
    prompt, rope = make_prompt(dit, 0), rows(range(5, 8))
    _, past = dit(*latents(5, 0), torch.tensor([0.0]), prompt, rows(range(5)))
    call = (*latents(3, 1), torch.tensor([743.0]), prompt, rope)
    velocity, _ = dit(*call, past)
    for index, cache in enumerate(past):
        for name in cache.__dataclass_fields__:
            changed = [*past]
            changed[index] = replace(cache, **{name: torch.zeros_like(getattr(cache, name))})
            other, _ = dit(*call, changed)
            assert not torch.allclose(other, velocity, rtol=1e-4), (index, name)


def test_biased_keys_of_the_past_are_invisible() -> None:
    dit = small_dit()
    prompt = make_prompt(dit, 0)
    _, past = dit(*latents(5, 0), torch.tensor([0.0]), prompt, rows(range(5)))
    call = (*latents(3, 1), torch.tensor([743.0]), prompt, rows(range(5, 8)))
    velocity, _ = dit(*call, past)
    junk = torch.full((1, 2, 4, CONFIG.head_dim), 3.0)
    padded = [
        replace(cache, k=torch.cat([cache.k, junk], 2), v=torch.cat([cache.v, junk], 2))
        if isinstance(cache, KVCache)
        else cache
        for cache in past
    ]
    bias = torch.zeros(1, 1, 1, padded[3].k.shape[2])
    assert not torch.allclose(dit(*call, padded, bias)[0], velocity, rtol=1e-3)
    bias[..., -4:] = -10000.0
    assert_near(dit(*call, padded, bias)[0], velocity)


def test_padding_tokens_of_the_prompt_are_invisible() -> None:
    dit = small_dit()
    text, mask = text_and_mask(0)
    other = text.clone()
    other[:, -2:] = 5.0
    call = (*latents(3, 1), torch.tensor([743.0]))
    velocity, _ = dit(*call, dit.prompt(text, mask), rows(range(3)))
    assert_near(dit(*call, dit.prompt(other, mask), rows(range(3)))[0], velocity)
    other[:, 0] = 5.0
    assert not torch.allclose(dit(*call, dit.prompt(other, mask), rows(range(3)))[0], velocity, rtol=1e-3)


def test_the_timestep_is_truncated() -> None:
    dit = small_dit()
    prompt = make_prompt(dit, 0)
    velocity = [dit(*latents(3, 1), torch.tensor([time]), prompt, rows(range(3)))[0] for time in (537.0, 537.9, 538.0)]
    assert torch.equal(velocity[0], velocity[1])
    assert not torch.equal(velocity[1], velocity[2])


def test_sinusoid_has_the_cosine_half_first() -> None:
    embedding = sinusoid(torch.tensor([0.0, 2.0]))
    assert embedding[0].tolist() == [1.0] * 128 + [0.0] * 128
    torch.testing.assert_close(embedding[1, [0, 128]], torch.tensor([math.cos(2.0), math.sin(2.0)]))


def test_both_classes_of_the_release_are_one_model() -> None:
    whole = DiT(replace(CONFIG, streaming=False))
    assert {name: p.shape for name, p in whole.state_dict().items()} == {
        name: p.shape for name, p in small_dit().state_dict().items()
    }


def test_bf16_stays_near_fp32() -> None:
    dit = small_dit()
    velocity, _ = two_chunks(dit, 0)
    half = small_dit().to(torch.bfloat16)
    prompt = half.prompt(*(x.bfloat16() for x in text_and_mask(0)))
    times = torch.tensor([900.0])
    _, past = half(*(x.bfloat16() for x in latents(5, 0)), times, prompt, rows(range(5)))
    rounded, _ = half(*(x.bfloat16() for x in latents(3, 1)), times, prompt, rows(range(5, 8)), past)
    assert rounded.dtype == torch.bfloat16
    assert_near(rounded.float(), velocity, 0.05)


def test_random_weights_are_a_function_of_the_seed() -> None:
    first, again, other = small_dit(0).state_dict(), small_dit(0).state_dict(), small_dit(1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert all(tensor.abs().min() > 0 for tensor in first.values())


@pytest.mark.parametrize("seed", [0, 1])
def test_a_random_model_stays_bounded_over_a_long_stream(seed: int) -> None:
    dit = DiT(replace(CONFIG, max_frames=128)).eval()
    fill_dit(dit, seed)
    prompt = make_prompt(dit, 0)
    stream = DiTStream(dit, streaming_schedule(2), window=2, sink=True)
    outputs = [stream.step(*latents(5 if chunk == 0 else 3, chunk), prompt) for chunk in range(40)]
    spread = [float(output.std()) for output in outputs]
    assert max(output.abs().max() for output in outputs) < 20
    assert 0.5 < min(spread) < max(spread) < 4
