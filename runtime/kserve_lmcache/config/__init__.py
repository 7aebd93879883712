"""One effective configuration, from flags, a YAML file, variables and defaults.

``keys``       what can be set: LMCache's own table, read at run time, and our settings
``flags``      our flags, for a parser and from its result
``values``     a text or a YAML value as the type of its key
``sources``    reads flags, the file and the environment; nothing is decided there
``configuration``  the result
``resolve``    merges them, strongest first, and says which lost
``rules``      what is refused although every value has the right type
``engine_file``  hands the result to LMCache in the engine's processes
"""
