"""An object store for a test: `azure` (AZURITE: Azurite's program) or `s3` (moto), below the directory that is named.

Prints the environment that its clients need, one NAME=VALUE a line, then an empty line. Then it obeys lines of standard
input, with one line of JSON each: `list`, `search TEXT` (how many objects hold it), `flip NAME` (one bit in the
middle), `delete NAME`. It ends with its input.
"""

import json
import os
import re
import subprocess
import sys

CONTAINER = "custody"


def start(command, line_of):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=sys.argv[2])
    for line in process.stdout:
        if found := re.search(line_of, line):
            return process, found.group(1)
    sys.exit(f"{command[0]} did not start")


class Azure:
    # The account that every Azurite knows.
    ACCOUNT = "devstoreaccount1"
    KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def __init__(self):
        from azure.storage.blob import BlobServiceClient

        command = ["node", os.environ["AZURITE"], "--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence"]
        command += ["--skipApiVersionCheck", "--disableTelemetry"]
        self.process, url = start(command, r"successfully listen.*(http://\S+)")
        endpoint = f"{url}/{self.ACCOUNT}"
        self.container = BlobServiceClient(endpoint, credential=self.KEY).create_container(CONTAINER)
        self.environment = {
            "AZURE_STORAGE_ACCOUNT_NAME": self.ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": self.KEY,
            "AZURE_STORAGE_ENDPOINT": endpoint,
            "AZURE_ALLOW_HTTP": "true",
        }

    def names(self):
        return list(self.container.list_blob_names())

    def get(self, name):
        return self.container.download_blob(name).readall()

    def put(self, name, data):
        self.container.upload_blob(name, data, overwrite=True)

    def delete(self, name):
        self.container.delete_blob(name)


class S3:
    def __init__(self):
        import boto3

        program = os.path.join(os.path.dirname(sys.executable), "moto_server")
        self.process, url = start([program, "-H", "127.0.0.1", "-p", "0"], r"Running on (http://\S+)")
        self.environment = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT": url,
            "AWS_ALLOW_HTTP": "true",
        }
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        self.client = boto3.client("s3", endpoint_url=url, **keys)
        self.client.create_bucket(Bucket=CONTAINER)

    def names(self):
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=CONTAINER)
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def get(self, name):
        return self.client.get_object(Bucket=CONTAINER, Key=name)["Body"].read()

    def put(self, name, data):
        self.client.put_object(Bucket=CONTAINER, Key=name, Body=data)

    def delete(self, name):
        self.client.delete_object(Bucket=CONTAINER, Key=name)


store = {"azure": Azure, "s3": S3}[sys.argv[1]]()
try:
    for name, value in store.environment.items():
        print(f"{name}={value}")
    print(flush=True)
    for line in sys.stdin:
        verb, _, rest = line.strip().partition(" ")
        answer = None
        if verb == "list":
            answer = store.names()
        elif verb == "search":
            answer = sum(rest.encode() in store.get(name) for name in store.names())
        elif verb == "flip":
            data = bytearray(store.get(rest))
            data[len(data) // 2] ^= 1
            store.put(rest, bytes(data))
        elif verb == "delete":
            store.delete(rest)
        else:
            sys.exit(f"no verb {verb}")
        print(json.dumps(answer), flush=True)
finally:
    store.process.kill()
