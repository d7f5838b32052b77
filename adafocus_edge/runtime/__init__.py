"""The glimpse loop, and its uses: results, batches of streams, annotated frames."""
