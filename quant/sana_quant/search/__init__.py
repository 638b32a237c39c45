"""The search for a precision policy: what to measure, what to predict from it, and what to choose. Knows no model."""
