// Azure's own clients against Custody, unmodified: see ../python/keys.py. NODE_EXTRA_CA_CERTS says whom to trust.

import assert from "node:assert";
import crypto from "node:crypto";
import dns from "node:dns";
import { ClientSecretCredential } from "@azure/identity";
import { CryptographyClient, KeyClient } from "@azure/keyvault-keys";

// libc does not resolve names below `localhost`; this stands for a line in /etc/hosts.
const lookup = dns.lookup;
dns.lookup = (host, options, done) => lookup(host.endsWith(".localhost") ? "127.0.0.1" : host, options, done);

const { CUSTODY_VAULT_URL: vault, CUSTODY_AUTHORITY: authorityHost, OFFICER_SECRET, APP_ID, APP_SECRET } = process.env;
const credential = (client, secret) => new ClientSecretCredential("adfs", client, secret, { authorityHost });
// Every method of both clients must be called: what a later SDK adds fails here until it has its check.
const methods = new Map();
for (const client of [KeyClient, CryptographyClient]) {
  const internal = /^(constructor|disambiguate|initializeIV|getKeyMaterial|fetchKey|getProvider|ensureValid)/;
  for (const [name, { value: method }] of Object.entries(Object.getOwnPropertyDescriptors(client.prototype))) {
    if (typeof method !== "function" || internal.test(name)) continue;
    const id = `${client.name}.${name}`;
    methods.set(id, false);
    client.prototype[name] = function (...rest) {
      methods.set(id, true);
      return method.apply(this, rest);
    };
  }
}
const officer = credential("officer", OFFICER_SECRET);
const app = credential(APP_ID, APP_SECRET);
const keys = new KeyClient(vault, officer);

let checks = 0;
const check = (holds, what) => {
  assert(holds, what);
  checks += 1;
};
const refused = async (status, text, act) => {
  try {
    await act();
  } catch (e) {
    const said = `${e.message} ${JSON.stringify(e.details ?? {})}`;
    check(e.statusCode === status && said.includes(text), `expected ${status} ${text} in: ${e.statusCode} ${said}`);
    return;
  }
  assert.fail(`${status} with ${text} was expected`);
};
const collect = async (iterator) => {
  const found = [];
  for await (const item of iterator) found.push(item);
  return found;
};

async function lifeOfAKey() {
  const made = await keys.createRsaKey("js-key", { keySize: 2048, tags: { team: "hr" } });
  check(made.id.startsWith(`${vault}/keys/js-key/`) && made.keyType === "RSA", made.id);
  const again = await keys.createKey("js-key", "RSA", { keySize: 2048 });
  check(again.properties.version !== made.properties.version, "a new version");
  check((await keys.getKey("js-key", { version: made.properties.version })).id === made.id, "by version");
  const rotated = await keys.rotateKey("js-key");
  check((await keys.getKey("js-key")).id === rotated.id, "the current version");
  check((await collect(keys.listPropertiesOfKeyVersions("js-key"))).length === 3, "three versions");
  const changed = await keys.updateKeyProperties("js-key", rotated.properties.version, { enabled: false });
  check(changed.properties.enabled === false, "switched off");
  check((await collect(keys.listPropertiesOfKeys())).some((k) => k.name === "js-key"), "listed");
  await refused(404, "KeyNotFound", () => keys.getKey("nothing-here"));
  await refused(400, "HSM", () => keys.createOctKey("oct", { hsm: true }));
  await refused(400, "2048, 3072 or 4096", () => keys.createRsaKey("small", { keySize: 1024 }));
}

async function deletion() {
  await keys.createEcKey("js-short", { curve: "P-384" });
  const backup = await keys.backupKey("js-short");
  await refused(409, "Conflict", () => keys.restoreKeyBackup(backup));
  await (await keys.beginDeleteKey("js-short")).pollUntilDone();
  check((await keys.getDeletedKey("js-short")).properties.recoveryId === `${vault}/deletedkeys/js-short`, "deleted");
  check((await collect(keys.listDeletedKeys())).some((k) => k.name === "js-short"), "and listed");
  await refused(409, "ObjectIsDeletedButRecoverable", () => keys.createEcKey("js-short"));
  await (await keys.beginRecoverDeletedKey("js-short")).pollUntilDone();
  await (await keys.beginDeleteKey("js-short")).pollUntilDone();
  await keys.purgeDeletedKey("js-short");
  await refused(404, "Deleted Key not found", () => keys.getDeletedKey("js-short"));
  check((await keys.restoreKeyBackup(backup)).name === "js-short", "restored");
}

async function imports() {
  const pair = crypto.generateKeyPairSync("rsa", { modulusLength: 2048 });
  const jwk = pair.privateKey.export({ format: "jwk" });
  const bytes = Object.fromEntries(
    Object.entries(jwk).map(([name, text]) => [name, name === "kty" ? text : Buffer.from(text, "base64url")]),
  );
  const brought = await keys.importKey("js-brought", bytes);
  check(Buffer.from(brought.key.n).equals(bytes.n), "the same public half");
}

async function cryptography() {
  const key = await keys.createRsaKey("js-user", { keySize: 2048 });
  const client = new CryptographyClient(key.id, app);
  for (const algorithm of ["RSA-OAEP-256", "RSA-OAEP"]) {
    const wrapped = await client.wrapKey(algorithm, Buffer.alloc(32, 7));
    check(Buffer.from((await client.unwrapKey(algorithm, wrapped.result)).result).equals(Buffer.alloc(32, 7)), algorithm);
    const sealed = await client.encrypt({ algorithm, plaintext: Buffer.from("small") });
    const opened = await client.decrypt({ algorithm, ciphertext: sealed.result });
    check(Buffer.from(opened.result).toString() === "small", algorithm);
  }
  await refused(400, "does not open", () => client.unwrapKey("RSA-OAEP-256", Buffer.alloc(256, 1)));
  const publicKey = crypto.createPublicKey({
    format: "jwk",
    key: { kty: "RSA", n: Buffer.from(key.key.n).toString("base64url"), e: Buffer.from(key.key.e).toString("base64url") },
  });
  for (const algorithm of ["PS256", "PS384", "PS512"]) {
    // The SDK checks by itself, and takes PS* for RS* there; Node's own check is asked instead.
    const signed = await client.signData(algorithm, Buffer.from("message"));
    const pss = { key: publicKey, padding: crypto.constants.RSA_PKCS1_PSS_PADDING, saltLength: algorithm.slice(2) / 8 };
    check(crypto.verify(`sha${algorithm.slice(2)}`, Buffer.from("message"), pss, signed.result), algorithm);
  }
  for (const algorithm of ["RS256", "RS384", "RS512"]) {
    const signed = await client.signData(algorithm, Buffer.from("message"));
    check((await client.verifyData(algorithm, Buffer.from("message"), signed.result)).result, algorithm);
    check(!(await client.verifyData(algorithm, Buffer.from("another"), signed.result)).result, algorithm);
  }
  for (const [curve, algorithm, hash] of [["P-256", "ES256", "sha256"], ["P-384", "ES384", "sha384"], ["P-521", "ES512", "sha512"]]) {
    const ec = new CryptographyClient((await keys.createEcKey(`js-${curve.toLowerCase()}`, { curve })).id, app);
    const digest = crypto.createHash(hash).update("message").digest();
    const signed = await ec.sign(algorithm, digest);
    check((await ec.verify(algorithm, digest, signed.result)).result, algorithm);
  }
  const unversioned = new CryptographyClient(`${vault}/keys/js-user`, app);
  const wrapped = await unversioned.wrapKey("RSA-OAEP-256", Buffer.alloc(16, 9));
  check((await unversioned.unwrapKey("RSA-OAEP-256", wrapped.result)).result.length === 16, "without a version");
}

async function policies() {
  await keys.createRsaKey("js-aging", { keySize: 2048 });
  const standard = await keys.getKeyRotationPolicy("js-aging");
  check(standard.lifetimeActions.length === 1 && standard.lifetimeActions[0].timeBeforeExpiry === "P30D", "the default");
  const set = await keys.updateKeyRotationPolicy("js-aging", {
    lifetimeActions: [{ action: "Rotate", timeBeforeExpiry: "P30D" }],
    expiresIn: "P90D",
  });
  check(set.expiresIn === "P90D" && set.id === `${vault}/keys/js-aging/rotationpolicy`, set.id);
  check((await keys.rotateKey("js-aging")).properties.expiresOn > new Date(), "new versions expire by the policy");
  await refused(400, "one of", () =>
    keys.updateKeyRotationPolicy("js-aging", { lifetimeActions: [{ action: "Rotate" }] }));
  check((await keys.getRandomBytes(16)).length === 16, "random");
  await refused(400, "1 to 128", () => keys.getRandomBytes(0));
}

async function theRest() {
  const client = keys.getCryptographyClient("js-user");
  check(client.keyID.endsWith("/keys/js-user"), client.keyID);
  const digest = crypto.createHash("sha256").update("message").digest();
  const asApp = new CryptographyClient((await keys.getKey("js-user")).id, app);
  const signed = await asApp.sign("RS256", digest);
  check((await asApp.verify("RS256", digest, signed.result)).result, "RS256 of a digest");
  await refused(400, "not exportable", () => keys.releaseKey("js-user", "target"));
  await refused(400, "HSM", () => keys.getKeyAttestation("js-user"));
}

async function strangers() {
  await refused(403, "not authorized", () => new KeyClient(vault, app).createRsaKey("mine"));
  await refused(403, "not authorized", () =>
    new CryptographyClient(`${vault}/keys/js-user`, officer).unwrapKey("RSA-OAEP", Buffer.alloc(256)));
  const wrong = new KeyClient(vault, credential("officer", "not-the-secret"));
  await assert.rejects(() => wrong.getKey("js-user"), /AADSTS7000215|invalid_client/);
  checks += 1;
}

for (const story of [lifeOfAKey, deletion, imports, cryptography, policies, theRest, strangers]) await story();
const missed = [...methods].filter(([, called]) => !called).map(([id]) => id);
check(missed.length === 0, `never called: ${missed}`);
console.log(`${checks} checks passed`);
