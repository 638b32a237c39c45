"""The Gated DeltaNet operator: the readable reference that everything faster is compared with."""
