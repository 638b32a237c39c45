"""What a gated delta network call is about: sizes, precision, and where the rows of its tensors lie."""

from dataclasses import dataclass

NARROWEST = 16
"""The smallest side of a product on tensor cores."""

WIDEST = 128
"""The widest head whose sums fit in the registers of one program."""


def padded(width: int) -> int:
    """The next power of two, which is what kernels compute on."""
    return max(NARROWEST, 1 << (width - 1).bit_length())


@dataclass(frozen=True)
class Rows:
    """Elements between the rows of neighbouring tokens, per tensor."""

    q: int
    k: int
    v: int
    beta: int
    gate: int = 0
    rate: int = 0


@dataclass(frozen=True)
class Problem:
    """One chunk of `frames` frames of `tokens` tokens. It is a compile-time constant of every kernel.

    `fused` operands are raw projections (B, N, C), the others are prepared (B, h, T, S, d). `carried`: there is a
    state from the chunk before. `own_angles`: every batch row has its own rotary angles. `threefold`: a product in fp32
    is three in TF32, as calls of a card whose tensor cores are worth it have it.
    """

    # Not `key` and `value`: Triton wraps constants in an object that has a `value` of its own.
    batch: int
    heads: int
    frames: int
    tokens: int
    key_dim: int
    value_dim: int
    precision: str
    carried: bool
    rows: Rows
    fused: bool = False
    own_angles: bool = False
    threefold: bool = False

    @property
    def streams(self) -> int:
        """Independent recurrences: one per head of each batch row."""
        return self.batch * self.heads

    @property
    def joined(self) -> bool:
        """Whether one chain of the scan is past and later: of more frames, the later one wants another order."""
        return self.frames <= 3

    @property
    def chains(self) -> int:
        """Of the scan, each with a state per frame."""
        return 1 if self.joined else 2

    @property
    def all_frames(self) -> int:
        return self.streams * self.frames

    @property
    def all_tokens(self) -> int:
        """Rows of a raw projection."""
        return self.batch * self.frames * self.tokens

    @property
    def rate_block(self) -> int:
        """Tokens whose rates are read at once: a loop would wait for the memory as often as it goes round."""
        return min(padded(self.tokens), 1024)

    @property
    def hidden(self) -> int:
        return self.heads * self.key_dim

    @property
    def lanes(self) -> int:
        """Neighbouring channels of a row that a thread takes; they divide a head."""
        return min(self.key_dim & -self.key_dim, 8)

    @property
    def groups(self) -> int:
        """Of lanes in a row."""
        return self.hidden // self.lanes

    @property
    def piece(self) -> int:
        """The largest power of two of groups in a row."""
        return 1 << (self.groups.bit_length() - 1)

    @property
    def rest(self) -> int:
        """The groups of a row behind the piece, padded."""
        return 1 << max(self.groups - self.piece - 1, 0).bit_length()

    @property
    def key_scale(self) -> float:
        """What normed keys are multiplied by."""
        return (self.key_dim * self.tokens) ** -0.5

    @property
    def head_pad(self) -> int:
        return padded(self.heads)

    @property
    def key_pad(self) -> int:
        return padded(self.key_dim)

    @property
    def summed(self) -> bool:
        """Whether a padded row of prepared keys has room for one number more, with which products sum weighted keys."""
        return self.fused and self.key_pad > self.key_dim

    @property
    def pieces(self) -> int:
        """Float16 numbers whose sum is a prepared key: one has the bits of TF32, two nearly those of float32."""
        return 2 if self.fused and self.precision == "fp32" else 1

    @property
    def weighted_pieces(self) -> int:
        """The same of keys that meet values, in bfloat16 as those are: two have more bits than TF32, three all."""
        return {"bf16": 1, "tf32": 2, "fp32": 3}[self.precision] if self.fused else 1

    @property
    def lacked(self) -> float:
        """A factor that prepared keys lack: in float16, with its short range, they are as large as normed rows."""
        return self.key_scale if self.fused and self.precision != "bf16" else 1.0

    @property
    def room(self) -> int:
        """Channels behind the plain keys of a head, of which all are written: memory reads what is written in part."""
        return self.key_step - self.key_dim

    @property
    def room_pad(self) -> int:
        return padded(self.room)

    @property
    def key_step(self) -> int:
        """Elements between neighbouring heads in a row of prepared plain keys."""
        return self.key_pad if self.summed else self.key_dim

    @property
    def value_pad(self) -> int:
        return padded(self.value_dim)
