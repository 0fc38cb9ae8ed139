"""The report page of one training."""
