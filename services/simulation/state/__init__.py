"""Where the service keeps what has to outlive it: bulk runs and fitted calibrations."""
