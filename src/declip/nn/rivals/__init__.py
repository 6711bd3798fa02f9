"""The networks DeCLIP is compared with, in the sizes of their papers; official weights load strictly."""
