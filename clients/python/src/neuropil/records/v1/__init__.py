"""Contract of the record reader: `from neuropil.records import v1`."""

from neuropil.records.v1.records_service_pb2 import *
from neuropil.records.v1.records_service_pb2_grpc import RecordReaderStub as RecordReaderStub
