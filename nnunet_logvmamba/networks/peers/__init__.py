"""Networks of others that ours are compared with, written anew from their published mathematics, one per file."""
