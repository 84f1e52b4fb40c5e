"""HTTP of the features service: a module a resource, each with a `router`; the work is in the folders beside this."""
