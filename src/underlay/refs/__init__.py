"""Image refs as text: one canonical spelling for each, with what is secret kept out of it.

Which schemes can be fetched is the registry's to say; here only their form is read.
"""

from underlay.refs.objects import ObjectName, object_name
from underlay.refs.oci import registry_host
from underlay.refs.parse import MAX_LENGTH, is_ref, parse_ref
from underlay.refs.text import shown

__all__ = ["MAX_LENGTH", "ObjectName", "is_ref", "object_name", "parse_ref", "registry_host", "shown"]
