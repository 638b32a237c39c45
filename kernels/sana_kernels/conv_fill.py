# mypy: ignore-errors
"""Triton kernels on either side of a convolution: what makes its input in one pass, and what makes frames of pixels."""

import triton
import triton.language as tl


@triton.jit
def fill(buffer_ptr, kept_ptr, y_ptr, bias_ptr, skip_ptr, p: tl.constexpr, PIXELS: tl.constexpr):
    """Write the input of a convolution, but for what surrounds it; one program takes PIXELS whole pixels."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.arange(0, p.channel_pad)[None, :]
    inside = (pixel < p.pixels) & (channel < p.channels)
    column, row, frame = pixel % p.width, pixel // p.width % p.height, pixel // (p.width * p.height)
    if p.source == "sum":
        x = load_sum(y_ptr, bias_ptr, skip_ptr, pixel * p.channels + channel, channel, inside, p)
    elif p.source == "down":
        x = load_down(y_ptr, bias_ptr, skip_ptr, frame, row, column, channel, inside, p)
    elif p.source == "up":
        x = load_up(y_ptr, bias_ptr, skip_ptr, frame + p.drop, row, column, channel, inside, p)
    else:
        x = load_frames(y_ptr, frame, row, column, channel, inside, p)
    if p.keep:
        tl.store(kept_ptr + pixel * p.channels + channel, x.to(kept_ptr.dtype.element_ty), mask=inside)
    if p.norm:
        x = x * tl.rsqrt(tl.sum(x * x, 1, keep_dims=True) / p.channels + 1e-8)
        x = x * tl.sigmoid(x)
    store_inside(buffer_ptr, x, frame, row, column, channel, inside, p)


@triton.jit
def load_sum(y_ptr, bias_ptr, skip_ptr, offset, channel, inside, p: tl.constexpr):
    x = tl.load(y_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(bias_ptr + channel, mask=channel < p.channels, other=0.0)
    if p.residual:
        x += tl.load(skip_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    return x


@triton.jit
def skip_offset(frame, row, column, height: tl.constexpr, width: tl.constexpr, p: tl.constexpr):
    """Of a pixel in the input of the convolution beside the skip, which has past frames and perhaps a halo."""
    row += p.skip_halo
    column += p.skip_halo
    return ((frame * (height + 2 * p.skip_halo) + row) * (width + 2 * p.skip_halo) + column) * p.skip_channels


@triton.jit
def load_down(y_ptr, bias_ptr, skip_ptr, frame, row, column, channel, inside, p: tl.constexpr):
    """Unshuffle: channel c * volume + place is channel c of one of the pixels that are folded into this one."""
    narrow: tl.constexpr = p.channels // p.volume
    group: tl.constexpr = p.skip_channels * p.volume // p.channels
    x = load_places(y_ptr, frame, row, column, narrow, p.channel_pad // p.volume, 0, p)
    x += tl.load(bias_ptr + channel // p.volume, mask=channel < p.channels, other=0.0)
    if group & (group - 1) == 0:
        wide: tl.constexpr = p.channel_pad * group // p.volume
        skip = load_places(skip_ptr, frame, row, column, p.skip_channels, wide, 2, p)
        skip = tl.sum(tl.reshape(skip, (x.shape[0], p.channel_pad, group)), 2)
    else:
        skip = tl.zeros_like(x)
        for member in tl.static_range(group):
            offset = place_offset(frame, row, column, (channel * group + member) % p.volume, p.skip_channels, 2, p)
            offset += (channel * group + member) // p.volume
            skip += tl.load(skip_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    return x + skip / group


@triton.jit
def place_offset(frame, row, column, place, channels: tl.constexpr, past: tl.constexpr, p: tl.constexpr):
    """Of one of the pixels that are folded into one, in planes behind `past` other ones."""
    f, r, c = frame * p.t + place // (p.h * p.w) + past, row * p.h + place // p.w % p.h, column * p.w + place % p.w
    return ((f * (p.height * p.h) + r) * (p.width * p.w) + c) * channels


@triton.jit
def load_places(
    ptr, frame, row, column, channels: tl.constexpr, pad: tl.constexpr, past: tl.constexpr, p: tl.constexpr
):
    """All channels of the pixels that are folded into one, read pixel by pixel, in unshuffled order."""
    place = tl.arange(0, p.volume)[None, :, None]
    channel = tl.arange(0, pad)[None, None, :]
    offset = place_offset(frame[:, :, None], row[:, :, None], column[:, :, None], place, channels, past, p)
    inside = (frame[:, :, None] < p.frames) & (channel < channels)
    x = tl.load(ptr + offset + channel, mask=inside, other=0.0).to(tl.float32)
    return tl.reshape(tl.permute(x, (0, 2, 1)), (frame.shape[0], pad * p.volume))


@triton.jit
def load_up(y_ptr, bias_ptr, skip_ptr, frame, row, column, channel, inside, p: tl.constexpr):
    """Shuffle; the convolution's channels are sorted by place first, so that a pixel is read in one piece."""
    height: tl.constexpr = p.height // p.h
    width: tl.constexpr = p.width // p.w
    place = (frame % p.t * p.h + row % p.h) * p.w + column % p.w
    f, r, c = frame // p.t, row // p.h, column // p.w
    wide = place * p.channels + channel
    offset = ((f * height + r) * width + c) * (p.channels * p.volume) + wide
    x = tl.load(y_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(bias_ptr + wide, mask=inside, other=0.0)
    repeated = channel % (p.skip_channels // p.volume) * p.volume + place
    skip = tl.load(skip_ptr + skip_offset(f + 2, r, c, height, width, p) + repeated, mask=inside, other=0.0)
    return x + skip.to(tl.float32)


@triton.jit
def load_frames(frames_ptr, frame, row, column, channel, inside, p: tl.constexpr):
    """Patches: the channel counts colour, column, row."""
    r, c = row * p.h + channel % p.h, column * p.w + channel // p.h % p.w
    offset = ((frame * (p.height * p.h) + r) * (p.width * p.w) + c) * 3 + channel // (p.h * p.w)
    value = tl.load(frames_ptr + offset, mask=inside, other=0).to(tl.float32)
    return (value / 255 - 0.5) / 0.5


@triton.jit
def store_inside(buffer_ptr, x, frame, row, column, channel, inside, p: tl.constexpr):
    offset = (((frame + p.lead) * p.rows + row + p.halo) * p.columns + column + p.halo) * p.channels + channel
    tl.store(buffer_ptr + offset, x.to(buffer_ptr.dtype.element_ty), mask=inside)


@triton.jit
def mirror(buffer_ptr, p: tl.constexpr, PIXELS: tl.constexpr):
    """Fill the halo of the new frames with what lies as far on the other side of the border pixels."""
    index = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.arange(0, p.channel_pad)[None, :]
    frame, place = index // p.rim, index % p.rim
    inside = (frame < p.frames) & (channel < p.channels)
    # Both whole rows, then both ends of the rows between them.
    along = place < 2 * p.columns
    side = place - 2 * p.columns
    row = tl.where(along, place // p.columns * (p.rows - 1), 1 + side // 2)
    column = tl.where(along, place % p.columns, side % 2 * (p.columns - 1))
    first = buffer_ptr + (frame + p.lead) * (p.rows * p.columns * p.channels) + channel
    from_row, from_column = reflected(row, p.height), reflected(column, p.width)
    x = tl.load(first + (from_row * p.columns + from_column) * p.channels, mask=inside)
    tl.store(first + (row * p.columns + column) * p.channels, x, mask=inside)


@triton.jit
def reflected(index, size: tl.constexpr):
    """Where in a padded axis the value of `index` is from."""
    return tl.where(index == 0, 2, tl.where(index == size + 1, size - 1, index))


@triton.jit
def pixels(frames_ptr, y_ptr, bias_ptr, p: tl.constexpr, BLOCK: tl.constexpr):
    """8-bit frames, clamped and truncated, from the patches that the last convolution makes."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < p.values
    width: tl.constexpr = p.width * p.patch
    colour, c, r = index % 3, index // 3 % width, index // (3 * width)
    channel = (colour * p.patch + c % p.patch) * p.patch + r % p.patch
    offset = (r // p.patch * p.width + c // p.patch) * (3 * p.patch * p.patch) + channel
    x = tl.load(y_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(bias_ptr + channel, mask=inside, other=0.0)
    x = tl.minimum(tl.maximum(127.5 * x + 127.5, 0.0), 255.0)
    tl.store(frames_ptr + index, x.to(tl.uint8), mask=inside)
