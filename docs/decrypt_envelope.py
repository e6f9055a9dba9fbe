"""Decrypt one secret of AxioRank's Secrets Broker with your own AWS credentials, without AxioRank.

    python3 decrypt_envelope.py export.json > value.bin

export.json is the answer of GET /api/v1/broker-secrets/{id}/blob. Needs boto3 and cryptography. A `kms` ciphertext is
KMS's own CiphertextBlob. A `kms-envelope` ciphertext is: one byte 0x01; the length of the wrapped data key (2 bytes,
big endian); the data key as kms:Encrypt wrapped it; then AES-256-GCM under that key: nonce (12), ciphertext, tag (16),
with the encryption context as associated data (JSON, sorted keys, no spaces).
"""

import base64
import json
import sys

import boto3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

with open(sys.argv[1], encoding="utf-8") as file:
    export = json.load(file)
blob, context = base64.b64decode(export["ciphertext"]), export["encryptionContext"]
is_envelope = export["cipher"] == "kms-envelope"
end = 3 + int.from_bytes(blob[1:3], "big")
if is_envelope and blob[0] != 1:
    sys.exit("a version of the format that this script does not know")
kms = boto3.client("kms", region_name=export["region"])
opened = kms.decrypt(
    KeyId=export["keyArn"], CiphertextBlob=blob[3:end] if is_envelope else blob, EncryptionContext=context
)["Plaintext"]
if is_envelope:
    associated = json.dumps(context, sort_keys=True, separators=(",", ":")).encode("ascii")
    opened = AESGCM(opened).decrypt(blob[end : end + 12], blob[end + 12 :], associated)
sys.stdout.buffer.write(opened)
