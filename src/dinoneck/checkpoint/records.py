from dinoneck.checkpoint.schema import *
from dinoneck.checkpoint.schema import check_header as check_entries, describe_weights as told_weights
from dinoneck.checkpoint.pairing import need
