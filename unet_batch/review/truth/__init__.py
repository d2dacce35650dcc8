"""The truth as masks: label images, a COCO file, or a column of a table."""
