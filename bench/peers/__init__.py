"""Workers of other engines; worker.h describes the requests."""
