-- Take a lock if it is free; whether it was. Asked again by its owner, it gives the same answer.
-- KEYS[1]: the lock. ARGV: token of the owner, milliseconds that the lease lasts.
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
