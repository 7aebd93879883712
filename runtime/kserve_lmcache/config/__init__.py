"""The configuration of one server, from flags, a YAML file, environment variables and defaults.

The road of a value:

``settings``       the settings of this runtime
``keys``           every key that can be set: LMCache's, and the settings of this runtime
``flags``          the flags of the settings, on the parser of a command
``sources``        reads the flags, the file and the variables
``values``         parses the text or the YAML value of a key
``resolve``        merges the sources: flags, then the file, then variables, then defaults
``rules``          checks values of the right type that cannot work
``configuration``  the result: values with their sources, notes and problems

What the result means on this machine:

``resources``      the memory, cores and directories of the container
``engine_shape``   the sizes of the engine's KV cache
``local_tier``     the size of the local CPU tier
``disk_tier``      the disk tier: directories, size and limits
``remote_tier``    the limits of the remote tier
``credentials``    the address and the credentials of the remote store
``stores``         a remote store and a disk, as values
``tier_limits``    deadlines and memory of one tier, as values
``completion``     adds to a configuration what depends on the machine
``device``         the kind of device that the installed vLLM is for
``environment``    variables that must be set before Python starts
``metrics_directory``  the directory for the metrics of vLLM and LMCache in one server
``server_file``    what a live server tells the commands beside it

What the engine's processes read:

``engine_file``    LMCache's configuration file, and the files by which the processes report
``tier_plugins``   the tiers in LMCache's extra configuration

May import ``identity``, ``metrics``, ``compat`` and the leaves. Uses no network, no HTTP and no
engine: LMCache and vLLM are asked through ``compat``.
"""
