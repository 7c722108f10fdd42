-- Give a lock back; 0 if its lease had ended.
-- KEYS[1]: the lock. ARGV[1]: token of the owner.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
