"""What a customer applies in their AWS account, in the forms that they apply: JSON, CloudFormation, Terraform, AWS CLI.

Promise: every form holds the two policies of ``policies`` and nothing that allows more, and a value stands in it
quoted by its notation's own rules, so that it is read back as exactly that value. Pure; imports ``policies`` and what
is below it.
"""

from __future__ import annotations

from broker_core.setup_documents.blueprint import Blueprint, Format
from broker_core.setup_documents.cloudformation import cloudformation
from broker_core.setup_documents.commands import commands, fill_in
from broker_core.setup_documents.terraform import terraform
from broker_core.setup_documents.warnings import how_to_apply, warnings

__all__ = ["Blueprint", "Format", "cloudformation", "commands", "fill_in", "how_to_apply", "terraform", "warnings"]
