"""Files of datasets on local disks and blob stores: reading, listing, writing."""
