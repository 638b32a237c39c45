"""Stream live video through a served SANA-Streaming model."""
