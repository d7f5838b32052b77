"""The glimpse loop, and what is made of it: results, batches of streams, annotated frames."""
