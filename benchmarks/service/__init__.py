"""The example service under load: real requests over loopback, one in ten of them bad."""
