"""Here so that the tests in the folders below find the toy cluster and the traces of the scheduler beside this file."""
