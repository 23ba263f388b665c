"""Data, models, one pure training function, the sweep and the bank it fills."""
