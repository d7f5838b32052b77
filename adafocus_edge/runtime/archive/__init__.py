"""Archives: very many files, classified by several processes, on this machine or on a Ray cluster, resumably."""
