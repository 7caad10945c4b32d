from dinoneck.checkpoint.tensors import *
