"""Who needs the files of a cache: one probe for each way to tell. Each looks, and changes nothing."""
