from dinoneck.checkpoint.migrate import *
