"""What trainings have left: read, compared, laid out in tables and on a page; needs neither nnU-Net nor torch."""
