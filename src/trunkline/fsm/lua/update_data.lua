-- ttl, then names and values.
merge(redis.call('HGET', KEYS[1], 'names') or '', 2)
live(ARGV[1])
return redis.call('HGETALL', KEYS[1])
