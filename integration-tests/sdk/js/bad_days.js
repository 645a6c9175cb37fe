// What Azure's SDK raises where the vault throttles: see ../python/bad_days.py.

import assert from "node:assert";
import dns from "node:dns";
import { ClientSecretCredential } from "@azure/identity";
import { KeyClient } from "@azure/keyvault-keys";

const lookup = dns.lookup;
dns.lookup = (host, options, done) => lookup(host.endsWith(".localhost") ? "127.0.0.1" : host, options, done);
const { CUSTODY_VAULT_URL: vault, CUSTODY_AUTHORITY: authorityHost, OFFICER_SECRET } = process.env;
const credential = new ClientSecretCredential("adfs", "officer", OFFICER_SECRET, { authorityHost });

const alone = new KeyClient(vault, credential, { retryOptions: { maxRetries: 0 } });
await alone.createRsaKey("js-busy");
const raised = await (async () => {
  for (let n = 0; n < 20; n += 1) await alone.getKey("js-busy");
})().catch((e) => e);
assert(raised?.name === "RestError" && raised.statusCode === 429, `expected 429: ${raised}`);
assert(Number(raised.response.headers.get("retry-after")) >= 1, "how long to wait is said in whole seconds");
const patient = new KeyClient(vault, credential);
for (let n = 0; n < 6; n += 1) assert.equal((await patient.getKey("js-busy")).name, "js-busy");
console.log("4 checks passed");
