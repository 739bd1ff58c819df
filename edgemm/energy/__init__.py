"""Energy and heat: a reader for each kind of sensor, a thread that samples them, a meter that says joules of work.

    sensor.py      what a sensor is, and reading one number of a file
    ina3221.py     Jetson, through sysfs, and which of its rails make its total
    tegrastats.py  Jetson, the line that NVIDIA's tool prints
    nvml.py        NVIDIA's graphics cards
    sensors.py     x86 processors (RAPL), and those sensors that this machine has, or why they are missing
    sampler.py     the thread, and samples to joules
    heat.py        thermal zones and throttling
    meter.py       what `edgemm bench` holds in its hand

All of it was written from recorded layouts and tested on them.  None was run on a Jetson or beside a power meter.
"""
