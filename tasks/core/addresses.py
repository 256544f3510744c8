"""The forms of addresses of data and models that have a name of their own."""

SAMPLE_ADDRESS = "sample"  # the data that the product brings
HUB_PREFIX = "hf:"  # before what lies on the Hugging Face hub: hf:ORG/NAME
