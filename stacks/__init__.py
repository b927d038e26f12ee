"""The stacks of the inventory application, one DataStack and one ServiceStack for each stage."""
