"""Makes ``twistd -n indexify-dataplane`` and ``twist indexify-dataplane`` work. Imports nothing of the product: every
run of twistd and trial on the machine imports this file."""

from twisted.application.service import ServiceMaker

dataplane = ServiceMaker(
    "Indexify Dataplane",
    "indexify_dataplane.tap",
    "Runs the sandboxes and function executors of an Indexify cluster on this machine.",
    "indexify-dataplane",
)
