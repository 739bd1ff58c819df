"""Energy and heat: a reader for each kind of sensor, a thread that samples them, a meter that says joules of work.

    sensor.py              what a sensor is, and reading one number of a file
    rails.py               which of a Jetson's rails make its total
    ina3221.py             Jetson, through sysfs
    tegrastats.py          Jetson, the line that NVIDIA's tool prints;  tegrastats_stream.py runs the tool
    rapl.py                x86 processors, through sysfs
    nvml.py                NVIDIA's graphics cards
    find_sensors.py        those that this machine has, and why the others are missing
    trace.py               samples to joules: pure functions
    sampler.py             the thread
    heat.py                thermal zones and throttling
    meter.py               what `edgemm bench` holds in its hand

All of it was written from recorded layouts and tested on them.  None was run on a Jetson or beside a power meter.
"""
