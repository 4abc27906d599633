"""Small network parts that several rooms share; each module is imported by name, since they load torch."""
