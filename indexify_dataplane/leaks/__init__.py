"""What is on this host with the product's names or labels but in no record of the node: listed and swept."""
