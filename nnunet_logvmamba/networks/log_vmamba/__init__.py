"""LoG-VMamba's networks."""
