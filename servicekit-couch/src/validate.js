function (next, before, user, security) {
  var kinds = 'labels|leases|sessions|instances|lease|certs|scratch';
  var found = new RegExp('^[a-z0-9][a-z0-9._-]*:(' + kinds + '):').exec(next._id);
  if (!found) return;
  var kind = found[1];

  // Roles are set up where the database knows them as members; an administrator may do all.
  var roles = user.roles || [];
  var members = (security && security.members && security.members.roles) || [];
  var isAdmin = roles.indexOf('_admin') >= 0;
  if (members.indexOf('servicekit-agent') >= 0 && !isAdmin) {
    var may = kind === 'certs' ? ['servicekit-issuer']
      : kind === 'scratch' ? ['servicekit-agent', 'servicekit-issuer']
      : ['servicekit-agent'];
    var is = function (role) { return roles.indexOf(role) >= 0; };
    if (!may.some(is)) {
      // Who is nobody may be somebody whose session has ended.
      if (!user.name) throw { unauthorized: 'log in' };
      throw { forbidden: 'writing ' + kind + ' takes the role ' + may.join(' or ') };
    }
  }

  // What replication brings names a revision that is not there: the other place may have granted the lease too. Who mends what
  // was written in two places deletes a revision that is not the one that all see.
  var replicated = next._rev && (!before || before._rev !== next._rev);
  var mends = next._deleted && isAdmin;
  if (kind === 'lease' && replicated && !mends) {
    throw { forbidden: 'a lease is not replicated: it would be granted in two places' };
  }

  if (next._deleted) return;
  var refuse = function (what) { throw { forbidden: 'not a document of servicekit: ' + what }; };
  var isMoment = function (number) {
    return typeof number === 'number' && number >= 0 && Math.floor(number) === number;
  };
  if (next.servicekit !== 1) refuse('servicekit is not 1');
  if ((typeof next.value === 'string') === (typeof next.value64 === 'string')) {
    refuse('one of value and value64 has to be a string');
  }
  if (next.value64 && !/^[A-Za-z0-9+\/]*=*$/.test(next.value64)) refuse('value64 is not base64');
  if (typeof next.write !== 'string' || !next.write) refuse('write is no string');
  if ('ttl_ms' in next !== 'ends_ms' in next) refuse('one of ttl_ms and ends_ms is missing');
  if ('ttl_ms' in next && !(isMoment(next.ttl_ms) && isMoment(next.ends_ms))) {
    refuse('ttl_ms and ends_ms have to be whole numbers');
  }
}
