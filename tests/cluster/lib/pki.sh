# shellcheck shell=bash
# Keys, certificates, tokens and kubeconfig files, made anew for each cluster.

pki_make() {
  local dir=$state/pki user n
  mkdir -p "$dir"
  (
    cd "$dir" || exit
    openssl ecparam -name prime256v1 -genkey -noout -out ca.key
    openssl ecparam -name prime256v1 -genkey -noout -out sa.key
    # A configuration of our own: that of the machine may say anything.
    cat >ca.cnf <<'END'
[req]
distinguished_name = name
x509_extensions = ca
prompt = no
[name]
CN = lockstep-test-cluster
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign, digitalSignature
subjectKeyIdentifier = hash
END
    openssl req -x509 -new -key ca.key -config ca.cnf -days 365 -out ca.crt
    pki_certificate apiserver /CN=kube-apiserver serverAuth \
      "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,IP:$net.32.1,IP:$control_ip"
    pki_certificate kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth

    {
      pki_user admin admin system:masters
      pki_user controller-manager system:kube-controller-manager
      pki_user scheduler system:kube-scheduler
      pki_user proxy system:kube-proxy system:node-proxier
      for n in "${node_numbers[@]}"; do pki_user "node$n" "system:node:node$n" system:nodes; done
    } >tokens.csv
    rm -f ./*.cnf ./*.csr ./*.srl
  )
  cp "$dir/admin.kubeconfig" "$state/kubeconfig"
}

pki_certificate() { # NAME SUBJECT USAGE [ALTERNATIVE-NAMES]
  openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"
  cat >"$1.cnf" <<END
[req]
distinguished_name = name
prompt = no
[name]
CN = overridden
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = $3
${4:+subjectAltName = $4}
END
  openssl req -new -key "$1.key" -config "$1.cnf" -subj "$2" -out "$1.csr"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 \
    -extfile "$1.cnf" -extensions leaf -out "$1.crt" 2>/dev/null
}

# A line for the API server's token file, and the kubeconfig with that token.
pki_user() { # NAME USER [GROUP]
  local token
  token=$(openssl rand -hex 16)
  echo "$token,$2,$1${3:+,$3}"
  cat >"$1.kubeconfig" <<END
apiVersion: v1
kind: Config
clusters:
- name: lockstep-$id
  cluster:
    server: $api
    certificate-authority-data: $(base64 -w0 ca.crt)
users:
- name: $1
  user:
    token: $token
contexts:
- name: lockstep-$id
  context:
    cluster: lockstep-$id
    user: $1
current-context: lockstep-$id
END
}
