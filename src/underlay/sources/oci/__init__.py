"""Images in OCI registries: as artifacts, whose layer is the disk itself, and as KubeVirt's containerdisks.

Formats and protocol are those of the OCI image specification 1.1 and the OCI distribution specification 1.1, with Docker's
manifests of schema 2, which came before them.
"""
