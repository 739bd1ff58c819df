import logging

# bitsandbytes, which PEFT imports, warns of a kernel that only its own 4-bit inference would take; nothing is wrong.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
