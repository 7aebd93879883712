"""A store on a disk of this machine, with a bound on its size."""
