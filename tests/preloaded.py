"""What the forked processes of tests find done: all recipes and heads have been read (tests/several.py)."""
from utils.options import get_args

get_args([])
