"""Puts the repository on the path of its tests, and gives each test process one thread: the tensors are small, and
threads of several processes in each other's way make them a hundred times slower."""
import os

os.environ.setdefault('OMP_NUM_THREADS', '1')
