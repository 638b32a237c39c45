"""The whole edit in PyTorch, one stream at a time, without a server: what a served stream is compared with."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sana_export.checkpoint import Checkpoint
from sana_export.configs import ModelConfig
from sana_export.dit import DiT, Prompt
from sana_export.pixels import pixels_to_uint8, uint8_to_pixels
from sana_export.sampler import DiTStream
from sana_export.text import TextEncoder, prompt_tokenizer
from sana_export.vae import VAE
from sana_runtime.geometry import StreamGeometry
from sana_runtime.prompts import PromptTokenizer
from sana_runtime.schedule import chunk_noise, streaming_schedule


@dataclass(frozen=True)
class OfflinePipeline:
    """The parts of one model; every stage of a stream runs in turn, carrying its own state."""

    model: ModelConfig
    dit: DiT
    vae: VAE
    text: TextEncoder
    tokenizer: PromptTokenizer

    @classmethod
    def load(cls, model: ModelConfig, checkpoint: Checkpoint) -> "OfflinePipeline":
        """Every part of `checkpoint`; raises CheckpointError as its loads do."""
        tokenizer = prompt_tokenizer(checkpoint.tokenizer_path(), model.dit.text_tokens)
        parts = checkpoint.load_dit(model.dit), checkpoint.load_vae(model.vae), checkpoint.load_text(model)
        return cls(model, *parts, tokenizer)

    @property
    def geometry(self) -> StreamGeometry:
        return self.model.geometry

    @torch.inference_mode()
    def edit(self, chunks: Iterable[tuple[Tensor, str]], seed: int = 0) -> Iterator[Tensor]:
        """Edit (frames u8 (1, F, H, W, 3), prompt) chunk by chunk; yields u8 frames of the same shape."""
        config = self.model.stream
        stream = DiTStream(self.dit, streaming_schedule(config.steps), config.window, config.sink)
        encoder_state = decoder_state = None
        for index, (frames, prompt) in enumerate(chunks):
            source, encoder_state = self.vae.encoder(uint8_to_pixels(frames), encoder_state)
            shape = self.geometry.latent_shape(self.geometry.chunk(index))
            noise = torch.from_numpy(chunk_noise(seed, index, shape))
            latent = stream.step(noise, source, self.project(prompt))
            video, decoder_state = self.vae.decoder(latent, decoder_state)
            yield pixels_to_uint8(video)

    def project(self, prompt: str) -> Prompt:
        """Encode an instruction and project it to every block's cross-attention."""
        ids, mask = self.tokenizer.encode(prompt)
        return self.dit.prompt(*self.text(torch.from_numpy(ids), torch.from_numpy(mask)))
